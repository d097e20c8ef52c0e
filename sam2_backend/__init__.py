"""The model tier: SAM 2's words. Knows no Label Studio."""
