"""The browser app: a frame, pages, and the components they share."""
