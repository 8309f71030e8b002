"""The script that Streamlit runs, and the look of its frame.

It has a folder of its own: Streamlit would serve every file of a folder `pages` beside its script as a page.
"""
