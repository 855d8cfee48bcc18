"""pgworkflows in other people's houses: a package for each framework, imported only by those who have it."""
