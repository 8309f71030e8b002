"""Training, the gate, serving, and the whole loop."""
