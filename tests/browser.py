"""A headless Chromium, spoken to through its DevTools protocol."""

import json
import re
import shutil
import subprocess
from base64 import b64decode
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
FLAGS += ("--remote-debugging-port=0", "--remote-allow-origins=*", "--window-size=1500,900")


class Page:
    """A page that was opened: what it asked for, what it complained about, and its answers."""

    def __init__(self, socket):
        self.socket, self.number = socket, 0
        self.requests, self.complaints = [], []

    def call(self, method, **parameters):
        """Call a method of the protocol, taking down what happens meanwhile."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.take_down(answer)

    def take_down(self, event):
        method, parameters = event.get("method"), event.get("params")
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(parameters)

    def open(self, path):
        """Open a file and wait until its pictures are there."""
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.ask("document.readyState === 'complete' || new Promise(r => onload = () => r(true))")
        shown = "[...document.images].filter(image => image.src)"
        self.ask(f"Promise.all({shown}.map(image => image.decode())).then(() => 0)")

    def ask(self, expression):
        """Return the value of a JavaScript expression."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        result = self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def type(self, text):
        self.call("Input.insertText", text=text)

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key)

    def save_downloads_to(self, folder):
        options = {"behavior": "allow", "downloadPath": str(folder)}
        self.call("Browser.setDownloadBehavior", **options)

    def click(self, selector):
        """Click in the middle of an element, as a mouse does."""
        place = (
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())"
        )
        x, y = self.ask(place)
        for kind in ("mousePressed", "mouseReleased"):
            options = {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)

    def save_picture(self, path):
        picture = self.call("Page.captureScreenshot", format="png")["data"]
        Path(path).write_bytes(b64decode(picture))


@contextmanager
def browser(profile):
    """Start a browser with a new, empty profile and give its page."""
    import websocket

    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stderr.readline, "")
        port = next(m[1] for line in lines if (m := re.search(r"ws://127.0.0.1:(\d+)/", line)))
        yield Page(websocket.create_connection(find_page(port), timeout=60))
    finally:
        process.kill()
        process.communicate()


def find_page(port):
    """Return the address of the browser's only page."""
    from urllib.request import urlopen

    while True:
        with urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
            targets = json.load(answer)
        for target in targets:
            if target["type"] == "page":
                return target["webSocketDebuggerUrl"]
