"""What the API and the app share: records of images, query images, loaded models."""
