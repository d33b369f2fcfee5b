"""instructor_tasks owns courses, learners, grades, and the tasks instructors start on them.

A *course task* is what an instructor asked for, such as rescoring a problem for everybody; its
*subtasks* are the slices it was cut into, and a *report* is a file it leaves behind.
"""
