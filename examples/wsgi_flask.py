"""Flask: a WSGI application, each request in a thread.

    python -m trigi --app-dir examples wsgi:wsgi_flask:app        (pip install flask)
    curl --no-buffer http://127.0.0.1:8000/count/5
    head -c 1000000000 /dev/zero | curl -T - -X POST http://127.0.0.1:8000/upload

Bodies stream in both directions: the upload needs no more memory than a piece of it. When a client leaves, `yield`
raises, and the `finally` block runs.
"""

import time

from flask import Flask, Response, request

app = Flask(__name__)


@app.get("/hello/<name>")
def hello(name):
    return f"Hello, {name}\n"


@app.post("/upload")
def upload():
    size = 0
    while data := request.stream.read(64 * 1024):
        size += len(data)
    return f"{size} bytes\n"


@app.get("/count/<int:limit>")
def count(limit):
    def numbers():
        try:
            for number in range(limit):
                yield f"{number}\n"
                time.sleep(0.1)
        finally:
            print("counting ended")

    return Response(numbers(), mimetype="text/plain")
