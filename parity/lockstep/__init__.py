"""Several implementations taken through one pass together, stage by stage, each compared on the
way.
"""
