// The server's API: a key where it wants one, answers as they come, errors in words.

// Relative, so that the page also works behind a proxy that puts it under a path.
const at = (path) => new URL(path, document.baseURI);

/** What went wrong, in words for people. `status` is 0 where no answer came. */
export class Refused extends Error {
    constructor(message, { status = 0, waitS = 0 } = {}) {
        super(message);
        this.status = status;
        this.waitS = waitS;
    }
}

/** The model that is served: id, max_model_len, spec_hash. */
export async function model() {
    const response = await request("v1/models");
    return (await response.json()).data[0];
}

/** What messages cost: count, visual_tokens, tiles, grids. */
export async function tokenize(body) {
    const response = await request("tokenize", { body });
    return response.json();
}

/** The chunks of a streamed answer. Throws Refused, or AbortError where `signal` says so. */
export async function* chat(body, signal) {
    const asked = { ...body, stream: true, stream_options: { include_usage: true } };
    const response = await request("v1/chat/completions", { body: asked, signal });
    for await (const data of events(response.body)) {
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Refused(chunk.error.message);
        yield chunk;
    }
    throw broken();
}

/** The `data` of server-sent events (WHATWG HTML, section 9.2). */
export async function* events(stream) {
    // Not `for await` over the stream: Safari learnt that only lately.
    const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    let data = [];
    try {
        while (true) {
            const { value, done } = await reader.read().catch(unlessAborted(broken));
            if (done) return;
            const lines = (rest + value).split("\n");
            rest = lines.pop();
            for (const line of lines.map((each) => each.replace(/\r$/, ""))) {
                if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
                if (line === "" && data.length) yield data.splice(0).join("\n");
            }
        }
    } finally {
        reader.cancel().catch(() => {}); // already broken, or at its end
    }
}

async function request(path, { body, signal } = {}) {
    while (true) {
        const key = sessionStorage.getItem("key");
        const headers = key ? { Authorization: `Bearer ${key}` } : {};
        const sent = body ? { method: "POST", body: JSON.stringify(body) } : {};
        if (body) headers["Content-Type"] = "application/json";
        const response = await fetch(at(path), { ...sent, headers, signal }).catch(unlessAborted(unreachable));
        if (response.ok) return response;
        if (response.status !== 401 || !(await newKey(key))) throw await refused(response);
    }
}

/** The error of a response, in the form of OpenAI's where it has one. */
async function refused(response) {
    const body = await response.json().catch(() => ({}));
    const message = body.error?.message ?? `The server answered ${response.status} ${response.statusText}.`;
    return new Refused(message, { status: response.status, waitS: Number(response.headers.get("Retry-After")) || 0 });
}

const broken = () => new Refused("The connection broke before the answer was finished.");
const unreachable = () => new Refused("The server cannot be reached, or hung up. Is it running?");

/** For `catch`: an abort stays what it is, anything else is what `error` makes. */
function unlessAborted(error) {
    return (reason) => {
        throw reason.name === "AbortError" ? reason : error();
    };
}

let asking = null;

/** Whether there is another key than `old` to try. However many requests need one, people are asked once. */
async function newKey(old) {
    if (sessionStorage.getItem("key") === old) await (asking ??= askKey(old).finally(() => (asking = null)));
    return sessionStorage.getItem("key") !== old;
}

function askKey(old) {
    const dialog = document.getElementById("key");
    const form = dialog.querySelector("form");
    form.reset();
    document.getElementById("key-why").textContent = old ? "The last key was not accepted." : "";
    dialog.showModal();
    return new Promise((resolve) => {
        form.onsubmit = (event) => {
            event.preventDefault();
            sessionStorage.setItem("key", form.elements.key.value.trim());
            dialog.close();
        };
        form.querySelector(".plain").onclick = () => dialog.close();
        dialog.onclose = resolve;
    });
}
