"""The aligned merge: every freedom that leaves the model's function unchanged is used up first."""
