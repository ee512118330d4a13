"""The Ray Serve application in deploy/ray."""
