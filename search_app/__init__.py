"""THE DOORS: command line, HTTP API and Streamlit app. Thin. Imports everything; nothing imports it."""
