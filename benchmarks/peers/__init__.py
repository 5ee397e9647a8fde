"""Other ways to serve the same pipeline, each as a good engineer would write it for production; settings tune it."""
