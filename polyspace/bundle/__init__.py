"""A student, the converters to other spaces and the heads in one folder."""
