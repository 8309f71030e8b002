"""The command line, the HTTP API and the browser app. Imports the other packages; none imports it."""
