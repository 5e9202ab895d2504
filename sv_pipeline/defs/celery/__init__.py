"""Steps on Celery workers: the executor of runs, the application that workers load, and the command that starts one."""
