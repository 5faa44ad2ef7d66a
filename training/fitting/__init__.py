"""Oracle data to a router: predictor, price, second look, certificate."""
