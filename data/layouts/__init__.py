"""The forms in which datasets come: each lists a category's images and masks in the same way."""
