"""A judge as a service, its exports, and the proof that both are the trained judge."""
