// Light or dark: as the system says, until somebody says otherwise here.
"use strict";

{
    const system = matchMedia("(prefers-color-scheme: dark)");
    const chosen = () => localStorage.getItem("theme");
    const show = () => {
        if (chosen()) document.documentElement.dataset.theme = chosen();
        else delete document.documentElement.dataset.theme;
    };

    show();
    document.addEventListener("DOMContentLoaded", () => {
        document.getElementById("theme").addEventListener("click", () => {
            const current = chosen() ?? (system.matches ? "dark" : "light");
            const other = current === "dark" ? "light" : "dark";
            // Whoever is back at what the system says wants to follow it again.
            if (other === (system.matches ? "dark" : "light")) localStorage.removeItem("theme");
            else localStorage.setItem("theme", other);
            show();
        });
    });
}
