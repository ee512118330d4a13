"""The HTTP surface: the app, its routes and its OpenAPI document."""
