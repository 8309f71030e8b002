"""Services that the API and the app share: image records, arrivals, query images, loaded models."""
