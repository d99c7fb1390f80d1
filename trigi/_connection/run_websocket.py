"""TODO."""
async def run_websocket(exchange): raise NotImplementedError
