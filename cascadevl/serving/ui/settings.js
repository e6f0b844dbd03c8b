// What is sent with every question. Kept by this browser; an empty field leaves the choice to the server.

const dialog = document.getElementById("settings");
const form = dialog.querySelector("form");
const fields = [...form.elements].filter((field) => field.name);

/** {system, temperature, max_tokens, max_tiles}, of which only what is set is there. */
export function settings() {
    const set = fields.filter((field) => field.value.trim() && field.checkValidity());
    const value = (field) => (field.type === "number" ? Number(field.value) : field.value);
    return Object.fromEntries(set.map((field) => [field.name, value(field)]));
}

/** `changed()` is called when the dialog closes. */
export function wireSettings(changed) {
    const kept = JSON.parse(localStorage.getItem("settings") ?? "{}");
    for (const field of fields) field.value = kept[field.name] ?? "";
    document.getElementById("open-settings").addEventListener("click", () => dialog.showModal());
    form.addEventListener("submit", (event) => {
        event.preventDefault();
        dialog.close();
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // beside the dialog
    dialog.addEventListener("close", () => {
        localStorage.setItem("settings", JSON.stringify(settings()));
        changed();
    });
}
