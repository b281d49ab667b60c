"""Images and masks on disk: find, match, decode, cache."""
