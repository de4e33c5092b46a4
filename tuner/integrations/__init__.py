"""What lets this project and others work together; each module needs its own extra.

`pip install 'tuner[optuna,tensorboard,mlflow,wandb]'`, or one of them. Nothing here is loaded
before it is asked for.
"""
