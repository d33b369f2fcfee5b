"""What general tasks may create, change and delete here. contract: dispatcher §6"""

from services.dispatcher.general import GeneralTasks, registry
from services.libraries.resources import Collections, Components, Libraries
from services.libraries.temp_files import OwnedFiles
from services.libraries.version_resources import EXPORTERS, PUBLICATIONS, VERSIONS

RESOURCES = registry(Libraries(), Collections(), Components(), VERSIONS, PUBLICATIONS, EXPORTERS)
GENERAL = GeneralTasks(RESOURCES, OwnedFiles())
