"""The pages, each for one question. A page is a function without arguments."""
