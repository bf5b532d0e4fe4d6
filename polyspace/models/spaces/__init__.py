"""From the student's space to others, and back to one prediction."""
