"""The server process and the processes it keeps beside itself."""
