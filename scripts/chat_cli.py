"""Talk with a model in the terminal: python -m scripts.chat_cli [-p "Who are you?"]."""

from pt_app.pretrain.settings import TalkSettings, launch

if __name__ == "__main__":
    launch(TalkSettings, "chat.talk", __doc__)
