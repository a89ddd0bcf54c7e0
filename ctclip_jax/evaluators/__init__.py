"""What a trained model can do, as (name, value) pairs with 'a/b' names."""
