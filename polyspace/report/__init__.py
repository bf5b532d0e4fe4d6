"""Pictures and pages made from run files; nothing here knows a model."""
