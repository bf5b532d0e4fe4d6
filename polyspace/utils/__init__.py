"""Ground floor: files, ranks, numbers and logs. Imports nothing of the package but itself."""
