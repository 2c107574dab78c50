"""What a person at the terminal sees and sends: lines, progress, signals."""
