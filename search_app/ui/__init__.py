"""The browser app: pages, the components they share, and the data they read."""
