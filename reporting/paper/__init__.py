"""Tables as papers print them: over the categories of a dataset, and over the kinds of defects of a category."""
