"""Pictures of the console with the data of a mixed load."""
