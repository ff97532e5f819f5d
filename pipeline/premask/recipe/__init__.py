"""The recipe: what the user wants, validated, in one canonical form, hashed."""

from premask.recipe.layers import recipe_from as recipe_from
from premask.recipe.model import Recipe as Recipe
from premask.recipe.parts import Curriculum as Curriculum
from premask.recipe.parts import Filters as Filters
from premask.recipe.parts import SourceOptions as SourceOptions
