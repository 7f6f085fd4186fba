"""What runs where the data is: the ClientApp and personalization."""
