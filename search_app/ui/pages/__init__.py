"""The pages, each for one question: a function without arguments.

The folder is not called pages because Streamlit takes every file of a folder of that name for a page.
"""
