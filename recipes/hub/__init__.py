"""What leaves the house: exports, cards, secrets, publishing, and loading back."""
