"""The forms in which models write tool calls: as data (`form`), read as they come (`reader`), bound (`rules`)."""
