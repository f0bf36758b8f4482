from trine import App
app = App("research")
