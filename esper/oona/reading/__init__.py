"""Reading without a group: by position, as plain data, by search, with causes and effects; descriptors for others."""
