"""Pictures from folders, lists, tars, arrays and the built-in sample; truth for evaluation only."""
