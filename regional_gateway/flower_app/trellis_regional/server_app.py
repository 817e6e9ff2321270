"""The region's app: it stands in the installed package, not in the FAB."""

from regional_gateway.region_app import app as region

app = region.app  # an assignment, because Flower looks for one in this file's text
