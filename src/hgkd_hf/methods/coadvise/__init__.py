"""Co-advise (2106.12378): two classifiers of different inductive bias teach a ViT, each a token of its own."""
