"""How entangled is a concept in a model, and what does it cost to steer it out?"""

__version__ = "0.1.0"
