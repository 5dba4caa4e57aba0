"""In worker processes of tests: each half second what else comes each five or ten, and a first probe after one."""

from zithara_worker.delivery import breaker, courier
from zithara_worker.monitor import endpoints
from zithara_worker.settings import reload
from zithara_worker.worker import duties

duties.SHOP_INTERVAL = duties.REGISTRY_INTERVAL = reload.RETRY_SECONDS = endpoints.READ_INTERVAL_SECONDS = 0.5
breaker.FIRST_PAUSE_SECONDS = courier.FIRST_PAUSE_SECONDS = 1.0
