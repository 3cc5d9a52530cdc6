"""What runs inside the peers' own environments. None of it imports anything of ours."""
