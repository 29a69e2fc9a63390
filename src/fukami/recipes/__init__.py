"""Recipes: one file per landmark result; the file's name is the recipe's."""
