"""Commands that use the library as a person would: indexing, searching, and the demo that runs everything."""
